package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

const usageOfSources = `
Each flag but -help, -health and -version may be given in the environment, too: -tag-ttl is
FAKEECR_TAG_TTL, and several values of a flag stand between blanks. The file of -config has
the rest. A flag counts more than the environment, and that more than the file.

Exit status: 0 after SIGTERM or SIGINT, 1 if something failed, 2 if the flags cannot be used.
`

// maxFile limits files with settings.
const maxFile = 1 << 20

// source is where a value comes from. Of two, the lower one counts more.
type source int

const (
	commandLine source = iota
	environment
	configFile
)

// setting is one value of a flag that may be repeated.
type setting struct {
	value string
	from  source
	place string // the variable or the file that it stands in; "": the command line
}

// sources are where values come from, and what they are before anybody has checked them.
type sources struct {
	file                         string
	credentialFiles, secretFiles []setting
	described                    []describedRule
	warnings                     []string

	now        setting           // the source and the place that are being read
	given      map[string]string // the place of each flag that has one value
	repeatable map[string]bool
}

func (s *sources) flags(fs *flag.FlagSet) {
	fs.StringVar(&s.file, "config", "", "`FILE` with settings, in JSON: see docs/fakeecr.md. SIGHUP has it read again")
}

// list makes a flag that may be repeated.
func (s *sources) list(fs *flag.FlagSet, to *[]setting, name, usage string) {
	if s.repeatable == nil {
		s.repeatable = map[string]bool{}
	}
	s.repeatable[name] = true
	fs.Func(name, usage, func(value string) error {
		*to = append(*to, setting{value, s.now.from, s.now.place})
		return nil
	})
}

// readRest reads what the command line does not say. It is told of flags that are set.
func (s *sources) readRest(fs *flag.FlagSet, env []string) error {
	s.given = map[string]string{}
	fs.Visit(func(f *flag.Flag) { s.given[f.Name] = "" })
	if err := s.readEnvironment(fs, env); err != nil {
		return err
	}
	return s.readFile(fs)
}

// envPrefix stands before the name of a flag.
const envPrefix = "FAKEECR_"

// onlyFlags are questions and no settings: a variable of this name means something else.
var onlyFlags = []string{"version", "health"}

func (s *sources) readEnvironment(fs *flag.FlagSet, env []string) error {
	for _, pair := range env {
		variable, value, _ := strings.Cut(pair, "=")
		rest, ours := strings.CutPrefix(variable, envPrefix)
		if !ours || value == "" {
			continue
		}
		name := strings.ReplaceAll(strings.ToLower(rest), "_", "-")
		if fs.Lookup(name) == nil || slices.Contains(onlyFlags, name) {
			s.warnOfVariable(variable, name)
			continue
		}
		values := []string{value}
		if s.repeatable[name] {
			values = strings.Fields(value)
		}
		if err := s.set(fs, name, values, setting{from: environment, place: variable}); err != nil {
			return err
		}
	}
	return nil
}

// warnOfVariable warns of what is probably a mistake. Kubernetes sets variables for a service
// of this name: FAKEECR_PORT, FAKEECR_SERVICE_HOST and others.
func (s *sources) warnOfVariable(variable, name string) {
	if slices.Contains(onlyFlags, name) || strings.HasPrefix(name, "port") || strings.HasPrefix(name, "service-") {
		return
	}
	s.warnings = append(s.warnings, variable+": there is no flag -"+name)
}

// set gives a flag the values that a place has. Of a flag with one value, the source that
// was read first counts.
func (s *sources) set(fs *flag.FlagSet, name string, values []string, at setting) error {
	if !s.repeatable[name] {
		if _, ok := s.given[name]; ok {
			return nil
		}
		s.given[name] = at.place
	}
	s.now = at
	for _, value := range values {
		if err := fs.Set(name, value); err != nil { // which may show the value
			return &flagError{place: at.place, flag: "-" + name, why: "want true or false"}
		}
	}
	return nil
}

// readFile reads the file of -config, if there is one.
func (s *sources) readFile(fs *flag.FlagSet) error {
	if s.file == "" {
		return nil
	}
	content, err := readFile(s.file)
	if err != nil {
		return badFlag("-config", s.file, err.Error())
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(content, &members); err != nil {
		return badFlag("-config", s.file, "want a JSON object: "+err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if err := s.readMember(fs, name, members[name]); err != nil {
			return err
		}
	}
	return nil
}

// readMember reads one setting of the file.
func (s *sources) readMember(fs *flag.FlagSet, name string, raw json.RawMessage) error {
	switch {
	case name == describedRules:
		return s.readDescribed(raw)
	case fs.Lookup(name) == nil || name == "config" || slices.Contains(onlyFlags, name):
		return badFlag("-config", s.file, fmt.Sprintf("there is no setting %q", name))
	}
	values, isList, ok := valuesOf(raw)
	if !ok || isList && !s.repeatable[name] {
		want := "want a string, a number, true or false"
		if s.repeatable[name] {
			want = "want a string or a list of strings"
		}
		return &flagError{place: s.file, flag: "-" + name, why: want}
	}
	return s.set(fs, name, values, setting{from: configFile, place: s.file})
}

// valuesOf reads a value of the file, or a list of strings.
func valuesOf(raw json.RawMessage) (values []string, isList, ok bool) {
	var one any
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, false, false
	}
	switch one := one.(type) {
	case string:
		return []string{one}, false, true
	case bool, float64:
		return []string{string(raw)}, false, true
	case []any:
		err := json.Unmarshal(raw, &values)
		return values, true, err == nil
	}
	return nil, false, false
}

// locate adds to the error of a flag with one value where the value came from.
func (s *sources) locate(err error) error {
	if e, ok := errors.AsType[*flagError](err); ok && e.place == "" {
		e.place = s.given[strings.TrimPrefix(e.flag, "-")]
	}
	return err
}

// settled returns the values of flags that have one.
func (s *sources) settledValues(fs *flag.FlagSet) map[string]string {
	values := map[string]string{}
	fs.VisitAll(func(f *flag.Flag) {
		if !s.repeatable[f.Name] {
			values[f.Name] = f.Value.String()
		}
	})
	return values
}

// changed returns the names of flags that have other values now.
func changed(before, now map[string]string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if before[name] != now[name] {
			names = append(names, name)
		}
	}
	return names
}

// withFiles returns settings and those that files have, a line each, in the order of sources.
func withFiles(name string, settings, files []setting) ([]setting, error) {
	settings = slices.Clone(settings)
	for _, f := range files {
		content, err := readFile(f.value)
		if err != nil {
			return nil, &flagError{place: f.place, flag: name, value: strconv.Quote(f.value), why: err.Error()}
		}
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				settings = append(settings, setting{line, f.from, f.value})
			}
		}
	}
	slices.SortStableFunc(settings, func(a, b setting) int { return int(a.from - b.from) })
	return settings, nil
}

// readFile reads a file with settings.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() || info.Size() > maxFile {
		return nil, errors.New("it is no file of at most 1 MiB")
	}
	return os.ReadFile(name)
}
