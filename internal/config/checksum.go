package config

// The forms of checksum: as the peers', or always one of the two that there are.
const (
	checksumAuto   = "auto"
	checksumPlain  = "plain"
	checksumPseudo = "pseudo_header"
)

func (d *decoder) checksum(n *node, i *instanceDef) {
	form, ok := d.oneOf(n, "checksum", []string{checksumAuto, checksumPlain, checksumPseudo}, nil)
	switch {
	case !ok:
		return
	case form == checksumAuto || i.Version == 0 || len(i.Addresses) == 0:
	case i.Version == 2:
		d.errorf(n, "checksum: version 2 has one form only (RFC 3768): leave it out")
	case i.V6():
		d.errorf(n, "checksum: IPv6 has one form only: leave it out")
	}
	i.Checksum = form
}
