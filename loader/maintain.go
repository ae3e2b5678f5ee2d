package loader

// Maintain ends what time has ended: windows, idle pins, backends that have
// drained. It is to be called about once a second.
func (d *Datapath) Maintain() error {
	return nil
}
