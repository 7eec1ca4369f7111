package ecrapi

import (
	"maps"
	"slices"
)

// Operation is an operation of Amazon ECR's API.
type Operation struct {
	Name   string // "CreateRepository"
	Served bool   // an [API] answers it. false: it is the host's, see [API].Next
	Images bool   // only an API with Images answers it
}

// Operations returns all operations of Amazon ECR's API (version 2015-09-21, as of November
// 2026), in the order of their names.
func Operations() []Operation {
	all := make([]Operation, 0, len(operations)+len(imageOperations)+len(hostOperations))
	for name := range operations {
		all = append(all, Operation{Name: name, Served: true})
	}
	for name := range imageOperations {
		all = append(all, Operation{Name: name, Served: true, Images: true})
	}
	for _, name := range hostOperations {
		all = append(all, Operation{Name: name})
	}
	return sortBy(all, func(op Operation) string { return op.Name })
}

// hostOperations are the operations that an API does not answer: pushes, scans, replication,
// signing, storage classes and the previews of lifecycle policies.
var hostOperations = []string{
	"InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage",
	"StartImageScan", "DescribeImageScanFindings",
	"PutReplicationConfiguration", "DescribeImageReplicationStatus",
	"StartReplicationBackfill", "StopReplicationBackfill", "ListReplicationBackfills", "DescribeReplicationBackfillResults",
	"PutSigningConfiguration", "GetSigningConfiguration", "DeleteSigningConfiguration", "DescribeImageSigningStatus",
	"UpdateImageStorageClass",
	"StartLifecyclePolicyPreview", "GetLifecyclePolicyPreview",
}

// notServed is what callers read of an operation that nobody answers.
func notServed(op string) *Error {
	all := slices.Concat(slices.Collect(maps.Keys(imageOperations)), hostOperations)
	if slices.Contains(all, op) {
		return &Error{unknownOperation, op + " is not served here; in a program of your own API.Next may serve it"}
	}
	return &Error{unknownOperation, "The operation is not known."}
}
