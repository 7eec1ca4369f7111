package main

import "flag"

// serving are flags about the port, and those that serve nothing.
type serving struct {
	certFile, keyFile, selfSigned string
	names                         []setting
	version, health               bool
}

func (s *serving) flags(fs *flag.FlagSet, list func(fs *flag.FlagSet, to *[]setting, name, usage string)) {
	fs.StringVar(&s.certFile, "tls-cert", "", "`FILE` with the certificate to serve https with, in PEM, the chain behind it. SIGHUP has it read again")
	fs.StringVar(&s.keyFile, "tls-key", "", "`FILE` with the key of -tls-cert, in PEM")
	fs.StringVar(&s.selfSigned, "tls-self-signed", "", "`FILE` to write a certificate to, in PEM, for clients to trust: serve https with it. It is new\nat each start, and good for localhost, the host of -listen and the names of -account in AWS")
	list(fs, &s.names, "tls-name", "`NAME` or IP address that the certificate of -tls-self-signed is good for, too; repeatable")
	fs.BoolVar(&s.health, "health", false, "ask the fakeecr that has these flags whether it can serve, and exit with 0 or 1")
	fs.BoolVar(&s.version, "version", false, "print the version, and exit")
}

// config checks the flags.
func (s *serving) config(c *config) error {
	c.version, c.health = s.version, s.health
	switch {
	case s.selfSigned != "" && s.certFile != "":
		return badFlag("-tls-self-signed", s.selfSigned, "there is a -tls-cert already")
	case (s.certFile == "") != (s.keyFile == ""):
		return &flagError{flag: "-tls-cert", why: "it needs -tls-key, and that needs -tls-cert"}
	case s.selfSigned == "" && len(s.names) > 0:
		return &flagError{place: s.names[0].place, flag: "-tls-name", why: "it needs -tls-self-signed"}
	}
	c.tls = keyPair{certFile: s.certFile, keyFile: s.keyFile, selfSigned: s.selfSigned}
	for _, n := range s.names {
		c.tls.names = append(c.tls.names, n.value)
	}
	return nil
}

// rereads reports whether there are files for SIGHUP. Without them, it ends the process, as
// it does when a terminal is closed.
func (a *arguments) rereads() bool {
	return a.file != "" || a.certFile != "" || len(a.credentialFiles)+len(a.secretFiles) > 0
}
