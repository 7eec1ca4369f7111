package ecrapi_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

const exclusionPattern = `Member must satisfy regular expression pattern: ^arn:aws(-[a-z]+)*:iam::[0-9]{12}:(role|user)/[\w+=,.@-]+(/[\w+=,.@-]+)*$`

func TestExclusions(t *testing.T) {
	c := start(t, &ecrapi.API{})
	user := "arn:aws:iam::123456789012:user/team/scanner"
	c.ok(t, "ListPullTimeUpdateExclusions", "{}", `{"pullTimeUpdateExclusions":[]}`)
	c.ok(t, "RegisterPullTimeUpdateExclusion", object("principalArn", user), `{"principalArn":"`+user+`","createdAt":946684800}`)
	c.now = epoch.Add(500 * time.Millisecond)
	c.ok(t, "RegisterPullTimeUpdateExclusion", object("principalArn", role), `{"principalArn":"`+role+`","createdAt":946684800.5}`)
	c.ok(t, "ListPullTimeUpdateExclusions", "{}", `{"pullTimeUpdateExclusions":["`+role+`","`+user+`"]}`)
	c.fails(t, "RegisterPullTimeUpdateExclusion", object("principalArn", role), "ExclusionAlreadyExistsException",
		"The pull time update exclusion of '"+role+"' already exists in the registry with id '123456789012'")
	c.ok(t, "DeregisterPullTimeUpdateExclusion", object("principalArn", role), object("principalArn", role))
	c.fails(t, "DeregisterPullTimeUpdateExclusion", object("principalArn", role), "ExclusionNotFoundException",
		"The pull time update exclusion of '"+role+"' does not exist in the registry with id '123456789012'")
	c.ok(t, "ListPullTimeUpdateExclusions", "{}", `{"pullTimeUpdateExclusions":["`+user+`"]}`)
}

func TestExclusionsThatAreNoPrincipals(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, op := range []string{"RegisterPullTimeUpdateExclusion", "DeregisterPullTimeUpdateExclusion"} {
		c.fails(t, op, `{}`, "InvalidParameterException", constraint("principalArn", mustNotBeNull))
		for _, arn := range []string{"", "*", "arn:aws:iam::123456789012:root", "arn:aws:iam::1:role/a", "arn:aws:sts::123456789012:assumed-role/a/b", role + "/", role + " "} {
			c.fails(t, op, object("principalArn", arn), "InvalidParameterException", constraint("principalArn", exclusionPattern))
		}
		c.fails(t, op, object("principalArn", role+strings.Repeat("x", 200)), "InvalidParameterException", constraint("principalArn", tooLong+"200"))
	}
}

func TestThe101stExclusion(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for i := range 100 {
		arn := fmt.Sprint(role, i)
		c.ok(t, "RegisterPullTimeUpdateExclusion", object("principalArn", arn), `{"principalArn":"`+arn+`","createdAt":946684800}`)
	}
	c.fails(t, "RegisterPullTimeUpdateExclusion", object("principalArn", role), "LimitExceededException",
		"The registry with id '123456789012' has 100 pull time update exclusions already, which is as many as there may be")
}
