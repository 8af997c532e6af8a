package tes

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxID is the length in bytes of the longest task id.
const maxID = 255

// ValidID says why id cannot name a task: it becomes a key of the journal, a
// Docker label and a word on terminals. Slashes are fine; batch engines have
// ids with them.
func ValidID(id string) error {
	switch {
	case id == "":
		return errors.New("must not be empty")
	case len(id) > maxID:
		return fmt.Errorf("must not be longer than %d bytes", maxID)
	case !utf8.ValidString(id):
		return errors.New("must be UTF-8")
	}
	if id[0] == '@' {
		return errors.New("must not begin with @, which names the node itself in the journal")
	}
	for _, r := range id {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("must not hold the character %U, which does not print", r)
		}
	}
	if strings.TrimSpace(id) != id {
		return errors.New("must not begin or end with a space")
	}
	return nil
}

// Names that EncodeID gives.
var (
	plainName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	hashedName = regexp.MustCompile(`\.[0-9a-f]{32}$`)
	oddRunes   = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)
)

// EncodeID turns a task id into a name for a directory or a Docker object: at
// most 73 of [A-Za-z0-9_.-], of which the first is a letter or a digit. Ordinary
// ids stay as they are. Others keep a beginning for the reader and end with a
// dot and 128 bits of their hash; ids that look like that already are hashed
// too, so that two ids never share a name.
func EncodeID(id string) string {
	if plainName.MatchString(id) && !hashedName.MatchString(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	readable := strings.TrimLeft(oddRunes.ReplaceAllString(id, "_"), "_.-")
	if readable == "" {
		readable = "task"
	}
	return readable[:min(len(readable), 40)] + "." + hex.EncodeToString(sum[:16])
}

// DocumentHash identifies what a document asks for, in hexadecimal: the same for
// documents that differ in formatting, order of fields, spelling of field names
// or in the fields that a server sets, id among them. The key keeps anyone who
// sees the hash from guessing secrets in the document.
//
// Take it of what Decode returned, before Validate, whose changes may differ
// from one version to the next.
func DocumentHash(t *Task, key []byte) string {
	asked := *t
	asked.ID, asked.State, asked.Logs, asked.CreationTime = "", "", nil, time.Time{}
	text, err := json.Marshal(asked)
	if err != nil {
		panic("tes: a task does not encode: " + err.Error()) // NaN cannot come out of Decode
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil))
}
