package pullthroughtest

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// writeError answers status with an OCI error document that has the usual code for the status.
func writeError(w http.ResponseWriter, status int, message string) {
	writeCode(w, status, usualCode(status), message)
}

func writeCode(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, errorDocument{{Code: code, Message: message}})
}

func usualCode(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusNotFound:
		return "NAME_UNKNOWN"
	case http.StatusMethodNotAllowed:
		return "UNSUPPORTED"
	case http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	}
	return "UNKNOWN"
}

func writeJSON(w http.ResponseWriter, status int, document any) {
	body := marshal(document)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // it fails only if the client has gone
}

// errorDocument is the body of an OCI error.
type errorDocument []struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (d errorDocument) MarshalJSON() ([]byte, error) {
	type errors errorDocument
	return json.Marshal(map[string]errors{"errors": errors(d)})
}
