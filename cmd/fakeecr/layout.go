package main

import (
	"fmt"
	"strings"
)

// layout says which columns a line has room for, and how wide they are. All lines have
// the same layout.
type layout struct {
	width int // of a line
	name  int
	bar   int // with its brackets; 0: there is none
	facts int // how many of factWidths
}

const (
	gap = 2 // between columns
	// leastName is how much of a long name is shown if other columns need the room.
	leastName = 24
	leastBar  = 12
	// fullName is how long names usually are, at most.
	fullName = 60
	// luxuries is the index of the first fact that is less wanted than a whole name.
	luxuries = 3
	mostBar  = 42
)

// factWidths are the columns behind the bar, the most wanted first: 100%,
// 1023.9 MiB/s, 1023.9 MiB/1023.9 MiB, 23h59m59s left, 5000 clients.
var factWidths = []int{4, 12, 21, 14, 12}

func (b bar) facts() []string { return []string{b.percent, b.rate, b.bytes, b.left, b.clients} }

// layoutFor returns the layout that shows the most in lines of width. longest is the
// length of the longest name.
func layoutFor(width, longest int) layout {
	width = max(width, 0)
	l := layout{width: width, name: min(longest, leastName, max(width-gap-factWidths[0], 0))}
	room := l.width - l.name
	for l.facts < len(factWidths) {
		need := gap + factWidths[l.facts]
		if l.facts >= luxuries {
			need += min(longest, fullName) - l.name // the whole name comes first
		}
		if room < need {
			break
		}
		room -= gap + factWidths[l.facts]
		l.facts++
		if l.facts == 2 && room >= gap+leastBar { // the next fact repeats what the bar shows
			room -= gap + leastBar
			l.bar = leastBar
		}
	}
	more := min(room, longest-l.name)
	l.name += more
	if l.bar > 0 {
		l.bar = min(l.bar+room-more, mostBar)
	}
	return l
}

// line returns b as one line, without blanks at its end. Of a name that is too long it
// shows the end, since that differs from blob to blob.
func (l layout) line(b bar) string {
	name := b.name
	if cut := len(name) - l.name; cut > 0 {
		name = ".." + name[min(cut+2, len(name)):]
	}
	text := fmt.Sprintf("%-*s", l.name, name)
	if l.bar > 0 {
		text += strings.Repeat(" ", gap) + b.render(l.bar-2)
	}
	for i, fact := range b.facts()[:l.facts] {
		text += fmt.Sprintf("%*s", gap+factWidths[i], fact)
	}
	return strings.TrimRight(text[:min(len(text), l.width)], " ")
}

// render returns [====>   ], with so many columns inside.
func (b bar) render(width int) string {
	done := min(int(max(b.share, 0)*float64(width)), width)
	inside := strings.Repeat("=", done)
	if b.share >= 0 && done < width {
		inside += ">"
	}
	return fmt.Sprintf("[%-*s]", width, inside)
}
