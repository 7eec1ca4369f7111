package ecrapi

import (
	"net/http"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// ScopeIdentity reads the caller of a request to AWS from the credential scope of its
// signature (Signature Version 4): the Region, and the account if the access key ID is the
// number of one, as emulators of AWS have it. Caller is the access key ID. It does not
// check the signature. Without a scope it returns the zero Identity. It never fails, and
// fits [API.Identify]. A registry client signs nothing: see [pullthrough.HostIdentity].
func ScopeIdentity(r *http.Request) (pullthrough.Identity, error) {
	scope := r.URL.Query().Get("X-Amz-Credential")
	if header, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 "); ok {
		_, scope, _ = strings.Cut(header, "Credential=")
		scope, _, _ = strings.Cut(scope, ",")
	}
	part := strings.Split(strings.TrimSpace(scope), "/") // key ID, date, Region, service, "aws4_request"
	if len(part) != 5 || part[4] != "aws4_request" {
		return pullthrough.Identity{}, nil
	}
	id := pullthrough.Identity{Region: part[2], Caller: part[0]}
	if len(part[0]) == 12 && strings.Trim(part[0], "0123456789") == "" {
		id.Account = part[0]
	}
	return id, nil
}
