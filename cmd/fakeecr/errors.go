package main

import "fmt"

// flagError says which flag cannot be used, and why. It holds no secret.
type flagError struct {
	place string // the variable or the file that it stands in; "": the command line
	flag  string // with its dash; "": the command line as a whole
	value string // as it may be shown; "": not at all
	why   string
}

func badFlag(name, value, why string) *flagError {
	return &flagError{flag: name, value: fmt.Sprintf("%q", value), why: why}
}

// Error is one line.
func (e *flagError) Error() string {
	said := e.why
	switch {
	case e.flag != "" && e.value == "":
		said = e.flag + ": " + said
	case e.flag != "":
		said = e.flag + " " + e.value + ": " + said
	}
	if e.place != "" {
		return e.place + ": " + said
	}
	return said
}
