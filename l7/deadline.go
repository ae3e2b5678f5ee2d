package l7

import "time"

// A deadline is one that is moved again and again, with each piece that is read or
// written. It is set anew only where the one that is set is too near: setting one costs
// more than asking for the time. So a piece may take its timeout, or up to a quarter
// and at most a second longer.
type deadline struct {
	set     func(time.Time) error
	timeout time.Duration // 0: there is no deadline
	at      time.Time     // the one that is set; zero: none
}

// extend gives the next piece its time.
func (d *deadline) extend() error {
	if d.timeout <= 0 {
		return nil
	}
	until := time.Now().Add(d.timeout)
	if !d.at.Before(until) {
		return nil
	}
	at := until.Add(min(d.timeout/4, time.Second))
	if err := d.set(at); err != nil {
		return err
	}
	d.at = at
	return nil
}

// lift gives the next piece all the time that it wants.
func (d *deadline) lift() error {
	if d.at.IsZero() {
		return nil
	}
	d.at = time.Time{}
	return d.set(time.Time{})
}
