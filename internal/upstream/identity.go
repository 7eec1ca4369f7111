package upstream

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

// identities are the identity tokens that token servers have given in place of
// those of credentials. They are safe for concurrent use.
//
// A token server may take an identity token once, and answer with the next one
// ("rotation"). Two exchanges of one token at a time would then refuse each other.
// So an exchange goes like this.
//
//  1. It waits in the queue of its identity, at most firstAnswerWait: a server that
//     hangs on one exchange must not hold up the others.
//  2. It sends the newest identity token that is known: the credential's own, or
//     the last one that came of it.
//  3. If the answer has another identity token, that one is kept before the queue
//     moves on, and the target is told.
//  4. If the server refuses, and a newer identity token has come meanwhile (by an
//     exchange that did not wait any longer), it sends that one. Else it fails.
//
// The credential's ID is part of the key. So a credential that the host has
// changed starts afresh with its own identity token.
type identities struct {
	newest *lru.Cache[identityKey, string]
	queues *lru.Cache[identityKey, *quota.Quota]
}

// identityKey says where an identity token of a credential is exchanged.
type identityKey struct {
	target     any // Target.ID
	credential credentialID
	realm      string
}

func newIdentities() *identities {
	return &identities{lru.New[identityKey, string](maxRegistries), lru.New[identityKey, *quota.Quota](maxRegistries)}
}

// enterQueue waits for the exchanges before this one, but not for long. The caller
// calls leave.
func (i *identities) enterQueue(ctx context.Context, key identityKey) (leave func()) {
	queue := i.queues.GetOrPut(key, func() *quota.Quota { return quota.New(1) })
	ctx, cancel := context.WithTimeout(ctx, firstAnswerWait)
	defer cancel()
	if queue.Take(ctx, 1) != nil {
		return func() {}
	}
	return func() { queue.Give(1) }
}

// get is what to send to the realm: the credential's own token, or what came of it.
func (i *identities) get(key identityKey, cred Credential) string {
	if newer, ok := i.newest.Get(key); ok {
		return newer
	}
	return cred.IdentityToken
}

func (i *identities) put(key identityKey, identityToken string) { i.newest.Put(key, identityToken) }
