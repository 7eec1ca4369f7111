package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// describedRules is the member of the file that has rules as
// "aws ecr describe-pull-through-cache-rules" prints them.
const describedRules = "pullThroughCacheRules"

// describedRule is a rule as Amazon ECR describes it. What else it says is not needed.
type describedRule struct {
	Prefix         string `json:"ecrRepositoryPrefix"`
	UpstreamURL    string `json:"upstreamRegistryUrl"`
	UpstreamPrefix string `json:"upstreamRepositoryPrefix"`
	Upstream       string `json:"upstreamRegistry"`
	CredentialARN  string `json:"credentialArn"`
	CustomRoleARN  string `json:"customRoleArn"`
}

func (s *sources) readDescribed(raw json.RawMessage) error {
	if err := json.Unmarshal(raw, &s.described); err != nil {
		return badFlag("-config", s.file, describedRules+": want the list that aws ecr describe-pull-through-cache-rules prints")
	}
	return nil
}

// addDescribed adds a rule of the file. Its secret is one of -secret.
func (c *config) addDescribed(file string, r describedRule) error {
	rule := pullthrough.Rule{
		Prefix: r.Prefix, UpstreamURL: r.UpstreamURL, UpstreamPrefix: r.UpstreamPrefix, Upstream: r.Upstream,
		CredentialARN: r.CredentialARN, CustomRoleARN: r.CustomRoleARN,
	}
	value := fmt.Sprintf("%s %q", describedRules, r.Prefix)
	if strings.Contains(r.UpstreamURL, "@") {
		return &flagError{place: file, flag: value, why: "a user or password does not belong in upstreamRegistryUrl"}
	}
	if err := rule.Check(); err != nil {
		return &flagError{place: file, flag: value, why: reason(err)}
	}
	if arn := strings.Split(r.CredentialARN, ":"); len(arn) > 4 && (arn[3] != c.Region || arn[4] != c.Account) {
		c.warnings = append(c.warnings, file+": "+value+": its credentialArn is not of this -account and -region")
	}
	if !c.addRuleOf(configFile, rule) {
		return &flagError{place: file, flag: value, why: "there is a rule with this prefix already"}
	}
	return nil
}
