package flight

// Turn waits until the calls have ended whose place this one has taken; see
// [Group.Renew]. A function calls it when its value is settled, before it does what must
// be done in the order of the values. It reports false when a newer call has taken the
// turn, and when the call's context has ended.
//
// So one call of a key has its turn and one waits, however many came:
//
//  1. A call has its value out and its turn. It stores that, and is slow.
//  2. Renew starts a second call. It has its value out, and waits for the first to end.
//  3. Renew starts a third call. As long as it has no value, the second goes on
//     waiting, and takes its place back if the third fails.
//  4. The third has a value. In its Turn it passes the second, whose Turn returns false,
//     and waits for the first in its place.
func (c *Call[K, V]) Turn() bool {
	if before := c.pass(); before != nil {
		select {
		case <-before.ended:
		case <-c.passed:
		case <-c.ctx.Done():
		}
	}
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	select {
	case <-c.passed:
		return false
	default:
	}
	c.hadTurn, c.before = true, nil
	return c.ctx.Err() == nil
}

// pass takes the turn of the calls before c that wait for it, and returns the call
// that c has to wait for.
func (c *Call[K, V]) pass() *Call[K, V] {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	for b := c.before; b != nil && !b.hadTurn && b.before != nil; b = c.before {
		c.before, b.before = b.before, nil
		close(b.passed)
	}
	return c.before
}

// giveBackLocked gives the key back to the call whose place c has taken, if c is
// unlinked before it has had its turn.
func (c *Call[K, V]) giveBackLocked() {
	if _, runs := c.group.live[c.before]; !runs {
		return
	}
	if _, taken := c.group.calls[c.key]; !taken {
		c.group.calls[c.key] = c.before
		c.before.keys = append(c.before.keys, c.key)
	}
}
