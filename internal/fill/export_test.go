package fill

// Abandon gives the fill up, as the watch does, and leaves it linked.
func (f *Fill) Abandon() bool { return f.spool.Abandon() }
