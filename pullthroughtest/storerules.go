package pullthroughtest

import (
	"errors"
	"fmt"
	"strings"
)

// storeRule is a promise of a Store, in the words of the documentation of package pullthrough, and what a Store does that
// keeps it.
type storeRule struct {
	of     string // whose documentation says so
	says   string
	remedy string
}

// String is what a complaint says of the rule.
func (r *storeRule) String() string {
	plain := strings.NewReplacer("[", "", "]", "").Replace(r.says)
	return "\n\trule (pullthrough." + r.of + "): " + plain + "\n\tremedy: " + r.remedy
}

// brokenRule is an error that breaks another rule than the one that a check is about.
type brokenRule struct {
	rule *storeRule
	text string
}

func (b *brokenRule) Error() string { return b.text }

func breaks(r *storeRule, format string, args ...any) *brokenRule {
	return &brokenRule{r, fmt.Sprintf(format, args...)}
}

// under returns s for complaints about another rule than the check's own.
func (s *storeTest) under(r *storeRule) *storeTest {
	other := *s
	other.rule = r
	return &other
}

// Errorf complains: what was seen, the rule that it breaks, and the remedy. The rule is the check's, unless one of args is
// a brokenRule.
func (s *storeTest) Errorf(format string, args ...any) {
	s.Helper()
	s.reporter.Errorf("%s", s.complaint(format, args))
}

// Fatalf is Errorf, and ends the check.
func (s *storeTest) Fatalf(format string, args ...any) {
	s.Helper()
	s.reporter.Fatalf("%s", s.complaint(format, args))
}

func (s *storeTest) complaint(format string, args []any) string {
	rule := s.rule
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			if other, ok := errors.AsType[*brokenRule](err); ok {
				rule = other.rule
			}
		}
	}
	return fmt.Sprintf(format, args...) + rule.String()
}

// The rules of each Store.
var (
	ruleMiss = &storeRule{
		"Store", "A miss is an error that Is [io/fs.ErrNotExist]. Any other error is a failure and never taken for a miss.",
		"return fs.ErrNotExist, or an error that wraps it (fmt.Errorf with %w), for what is not there, and for nothing else",
	}
	ruleRepo = &storeRule{
		"Store", "Account, Region and Name are one key: what one repository has, no other one shows.",
		"use the whole pullthrough.Repo as the key of your maps or paths. A Store of one account and Region refuses all others: its puts return " +
			"an error that Is errors.ErrUnsupported, its look-ups fs.ErrNotExist",
	}
	ruleRefuse = &storeRule{
		"Store", "A Store may refuse what it does not keep, such as another account: a put of that returns an error that Is [errors.ErrUnsupported] and keeps nothing, and a look-up is a miss.",
		"check first whether the Store keeps it, and return the error before anything is written",
	}
	ruleIdempotent = &storeRule{
		"Store", "Puts are idempotent: what is there stays.",
		"return nil for a put of what is there already, and leave it as it is; do not delete it before you write it anew",
	}
	ruleWhole = &storeRule{
		"Store", "A put that fails keeps nothing and takes nothing away.",
		"read all of r first, into memory (io.ReadFull, desc.Size bytes) or into a new file (io.Copy); return its error as it is; make the content visible only after that",
	}
	ruleConcurrent = &storeRule{
		"Store", "It must be safe for concurrent use.",
		"guard the maps by one sync.RWMutex, change an entry in one step while you hold it, and run the test with -race",
	}
	ruleUnchanged = &storeRule{
		"Store", "What a Store returns is never written to, by the Store either: it puts a changed copy in its place.",
		"change a copy (c := *m) and put that into the map in place of the old one",
	}
	ruleContent = &storeRule{
		"Manifest", "upstream's bytes, never encoded again",
		"keep Content as it is, as []byte; JSON that is decoded and encoded again has another digest",
	}
	ruleDescriptor = &storeRule{
		"Manifest", "MediaType, Digest, Size; the digest is of Content, always",
		"keep the Descriptor's MediaType and Digest as they were put, and guess neither from Content",
	}
	ruleTag = &storeRule{
		"Manifest", "set when asked for, or stored, by tag",
		"set Tag to ref in what Manifest returns for a tag",
	}
	ruleChecked = &storeRule{
		"Manifest", "when upstream last confirmed Tag; zero: pushed locally, never checked",
		"keep CheckedAt with each tag, to the second or better, and a zero time as zero (time.Time.IsZero)",
	}
	ruleOrigin = &storeRule{
		"Manifest", `host of the upstream it came from, with its port if it has one; "": pushed locally`,
		"keep Origin with each tag and with each digest; without it the image passes for one that was pushed here",
	}
	ruleLookUp = &storeRule{
		"Store", "Manifest returns the manifest that ref, a tag or a digest, names in repo.",
		"keep each manifest by its digest and, if m.Tag is set, by its tag; a reference with a colon is a digest",
	}
	ruleMove = &storeRule{
		"Store", "moves m.Tag, if set, in one step.",
		"point the tag at the new manifest under the lock; other tags, and the old manifest by its digest, stay. A tag that must not move returns pullthrough.ErrImmutable",
	}
	ruleKept = &storeRule{
		"Store", "Content that is stored already keeps all that the host knows of it, such as its push time.",
		"write a manifest only if its digest is new to the repository, and keep CheckedAt and Origin for each tag of its own",
	}
	ruleRevalidated = &storeRule{
		"Store", "With m.Source == [SourceRevalidated] only the tag's CheckedAt changes, even where tags are immutable; nothing does where the tag names another digest by then.",
		"begin PutManifest with: if m.Source == pullthrough.SourceRevalidated, set CheckedAt of the tag if it names m.Descriptor.Digest, and return nil",
	}
	ruleArgument = &storeRule{
		"Store", "The Store may keep m and must not change it.",
		"change a copy (c := *m) and keep the copy",
	}
	ruleVisible = &storeRule{
		"Store", "Blob returns the blob d if it is visible in repo: a blob that only another repository has is a miss.",
		"key blobs by repository and digest, or note for each repository which of the shared blobs it has",
	}
	rulePutBlob = &storeRule{
		"Store", "PutBlob stores the desc.Size bytes of r under desc.Digest and makes them visible in repo.",
		"keep these bytes and no others, before PutBlob returns; a blob may be empty, and may have any bytes in it",
	}
	ruleReader = &storeRule{
		"Store", "It ends after desc.Size bytes, reports a body that is shorter as an error, and fails once ctx has ended, so a Store that reads all and keeps it is right.",
		"read with io.ReadFull, io.ReadAll or io.Copy, never with a single Read, and return the reader's error",
	}
	ruleLock = &storeRule{
		"Store", "The Store holds no lock while it reads r: other calls go on meanwhile, and a read may fail or panic.",
		"read the blob before you take the lock, and unlock with defer",
	}
	ruleBody = &storeRule{
		"Blob", "Body has the content, from its first byte. It must be closed, and is not safe for concurrent use.",
		"open a new Body with an offset of its own in each call of Blob, as pullthrough.NewBlob does for bytes in memory and os.Open for a file",
	}
	ruleSize = &storeRule{
		"Blob", "Descriptor has Digest and Size. A Store may leave Size 0 if Body can seek.",
		"set Descriptor.Digest to d and Descriptor.Size to the length of the content",
	}
)

// The rules of what a Store may also be.
var (
	ruleStage = &storeRule{
		"Stage", "Nothing in it is visible in the Store before Commit.",
		"write into a file that no look-up finds, and rename it in Commit",
	}
	ruleCommit = &storeRule{
		"Stage", "Commit makes the content, desc.Size verified bytes, the repository's blob desc.Digest. That the Store has the blob already is no error. When Commit fails it forgets the content, as Abort does.",
		"return ctx's error first, if it has ended; then rename the file to its place and make the blob visible in the repository",
	}
	ruleAbort = &storeRule{
		"Stage", "Abort forgets the content.",
		"remove the file of this Stage, and nothing else: the Store may have the blob from somebody else",
	}
	ruleStageFiles = &storeRule{
		"Stage", "files that Open returned before stay readable until they are closed.",
		"open the file anew in each Open; rename and remove it, and never truncate it",
	}
	ruleSparse = &storeRule{
		"Stage", "If it returns true, several goroutines call WriteAt at a time, in any order and with gaps, but no byte twice; before Commit all bytes are there.",
		"write each piece at its own offset, or return false",
	}
	ruleStageEach = &storeRule{
		"Stage", "Stage is the place of one download, empty at first.",
		"give each StageBlob a new file (os.CreateTemp); a Store that has none to lend returns errors.ErrUnsupported",
	}
	ruleResume = &storeRule{
		"BlobStager", "ResumeBlob returns the Stage that was left under the key; until it ends nobody else gets it.",
		"keep the file under the key alone; take it out in ResumeBlob; say in Have only what was written, and never the last 64 KiB",
	}
	ruleTags = &storeRule{
		"TagLister", "Tags returns the tags of the repository, in any order. A repository that is not there is an error that Is [io/fs.ErrNotExist].",
		"return all tags, each once, in a new slice; a repository without tags has an empty list and no error",
	}
	ruleRepos = &storeRule{
		"RepoLister", "Repos returns the names of the repositories of one account in one Region, in any order.",
		"return the names of this account and Region only, each once; none is no error",
	}
	ruleExists = &storeRule{
		"RepoCreator", "RepoExists reports whether the repository is there. It is asked on misses.",
		"a repository is there once it was made, or something was put into it; not for what lies below it, and not for another account",
	}
	ruleCreate = &storeRule{
		"RepoCreator", "That the repository is there already is no error.",
		"return nil, and leave what is in it",
	}
	ruleReferrers = &storeRule{
		"ReferrerStore", "Referrers returns the list kept for subject, and when upstream confirmed it. A miss is an error that Is [io/fs.ErrNotExist].",
		"keep list and time by repository and subject; an empty list is a list, and no miss",
	}
	ruleReferrersKept = &storeRule{
		"ReferrerStore", "PutReferrers keeps the list in place of the one before. The Store must not change it.",
		"put the new pointer in place of the old one, and change neither list",
	}
	ruleManifests = &storeRule{
		"ManifestLister", "Manifests yields the digest of each manifest in the repository once, in any order: tagged and untagged ones, indexes and what they refer to.",
		"list the manifests by digest, not the tags; stop when yield returns false; a repository that is not there yields one error that Is fs.ErrNotExist",
	}
	ruleDelete = &storeRule{
		"ImageDeleter", "DeleteImage deletes what ref names in the repository: of a tag the tag alone, of a digest the manifest with all its tags.",
		"delete no more than that: blobs, other repositories and what lies below stay; what is not there is an error that Is fs.ErrNotExist",
	}
	ruleDeleteRepo = &storeRule{
		"ImageDeleter", "DeleteRepo deletes the repository with all that is in it. Repositories whose names are longer, by another component, stay.",
		"compare the whole name, not its beginning; what is not there is an error that Is fs.ErrNotExist",
	}
)
