package serve

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// Error answers with one error as the OCI distribution specification writes errors
// ("Error Codes").
func Error(w http.ResponseWriter, status int, code, message string) {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	JSON(w, status, "application/json", struct {
		Errors []entry `json:"errors"`
	}{[]entry{{code, message}}})
}

// JSON answers with v, which must be made of strings, numbers, and structs and
// slices of them.
func JSON(w http.ResponseWriter, status int, mediaType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // such values can always be encoded
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
