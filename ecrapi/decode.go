package ecrapi

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
)

// decode reads a request. The names of members match exactly, as in Amazon ECR:
// encoding/json ignores their case. decode ignores members that it does not know. A member
// that is null counts as absent.
func decode(body []byte, in any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if !json.Valid(body) {
		return errNoObject
	}
	switch member, ok := read(body, reflect.ValueOf(in).Elem()); {
	case ok:
		return nil
	case member == "":
		return errNoObject
	default:
		return &Error{serialization, "The member '" + member + "' has the wrong type."}
	}
}

var errNoObject = &Error{serialization, "The request is no valid JSON object."}

// read sets v to a JSON value. If that has another type it returns false, and the path of
// the member below v that does not fit.
func read(value json.RawMessage, v reflect.Value) (member string, ok bool) {
	if _, own := v.Addr().Interface().(json.Unmarshaler); own {
		return "", json.Unmarshal(value, v.Addr().Interface()) == nil
	}
	switch v.Kind() {
	case reflect.Struct:
		return readStruct(value, v)
	case reflect.Pointer:
		if string(value) == "null" {
			return "", true
		}
		v.Set(reflect.New(v.Type().Elem()))
		return read(value, v.Elem())
	case reflect.Slice:
		return readSlice(value, v)
	}
	return "", json.Unmarshal(value, v.Addr().Interface()) == nil
}

func readStruct(value json.RawMessage, v reflect.Value) (member string, ok bool) {
	var members map[string]json.RawMessage
	if json.Unmarshal(value, &members) != nil {
		return "", false
	}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		value, sent := members[name]
		if !sent {
			continue
		}
		if member, ok := read(value, v.Field(i)); !ok {
			return strings.TrimSuffix(name+"."+member, "."), false
		}
	}
	return "", true
}

func readSlice(value json.RawMessage, v reflect.Value) (member string, ok bool) {
	var items []json.RawMessage
	if json.Unmarshal(value, &items) != nil {
		return "", false
	}
	if items != nil {
		v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	}
	for i, item := range items {
		if member, ok := read(item, v.Index(i)); !ok {
			return member, false
		}
	}
	return "", true
}
