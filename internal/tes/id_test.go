package tes

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestValidID(t *testing.T) {
	for id, ok := range map[string]bool{
		"t1": true, "job-0012345": true, "arn:aws:batch:eu-1:1:job/a": true, "né 1": true, "..": true, strings.Repeat("a", 255): true,
		"": false, strings.Repeat("a", 256): false, "a\nb": false, "a\x00": false, "\xff": false, " a": false, "a ": false,
		"a\u202eb": false, "a\u00a0b": false, "@node": false, "a@b": true,
	} {
		if err := ValidID(id); (err == nil) != ok {
			t.Errorf("ValidID(%q) = %v", id, err)
		}
	}
}

func TestEncodeID(t *testing.T) {
	for id, want := range map[string]string{
		"t1": "t1",
		"0fbdb535_ffb23efdd27144fb9013b11a9e32398d": "0fbdb535_ffb23efdd27144fb9013b11a9e32398d",
		"a.b-c_D":                "a.b-c_D",
		"12345.batch":            "12345.batch",
		strings.Repeat("a", 64):  strings.Repeat("a", 64),
		strings.Repeat("a", 65):  strings.Repeat("a", 40) + ".635361c48bb9eab14198e76ea8ab7f1a",
		".":                      "task.cdb4ee2aea69cc6a83331bbe96dc2caa",
		"..":                     "task.5ec1f7e700f37c3d0b2981d04855fc34",
		"-rf":                    "rf.0",
		"/etc/passwd":            "etc_passwd.0",
		"arn:aws:batch:1:job/xy": "arn_aws_batch_1_job_xy.0",
		"né 1":                   "n_1.0",
		"":                       "task.0",
	} {
		got := EncodeID(id)
		if plain, ok := strings.CutSuffix(want, ".0"); ok {
			want = plain + got[max(0, len(got)-33):]
		}
		same(t, id, got, want)
	}
}

func TestEncodeIDIsInjective(t *testing.T) {
	name := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,72}$`)
	odd := rapid.StringOf(rapid.SampledFrom([]rune("ab/_. é-")))
	id := rapid.OneOf(rapid.String(), odd, rapid.Map(odd, EncodeID), rapid.Map(odd, func(s string) string { return EncodeID(EncodeID(s)) }))
	rapid.Check(t, func(t *rapid.T) {
		a, b := id.Draw(t, "a"), id.Draw(t, "b")
		if !name.MatchString(EncodeID(a)) {
			t.Fatalf("EncodeID(%q) = %q", a, EncodeID(a))
		}
		// The name of another id is the likeliest to share its name.
		for _, other := range []string{b, EncodeID(a)} {
			if a != other && EncodeID(a) == EncodeID(other) {
				t.Fatalf("%q and %q are both %q", a, other, EncodeID(a))
			}
		}
	})
}

func TestDocumentHash(t *testing.T) {
	task := decode(t, minimal(`"name":"a","resources":{"ram_gb":1}`))
	hash := DocumentHash(task, []byte("key"))
	for text, want := range map[string]bool{
		minimal(`"resources":{"ramGb":"1.0","zones":null},"id":"x","state":"RUNNING","name":"a"`): true,
		minimal(`"name":"b","resources":{"ram_gb":1}`):                                            false,
		minimal(`"name":"a","resources":{"ram_gb":2}`):                                            false,
		minimal(`"name":"a","resources":{"ram_gb":1},"volumes":["/v"]`):                           false,
	} {
		same(t, text, DocumentHash(decode(t, text), []byte("key")) == hash, want)
	}
	if DocumentHash(task, []byte("other")) == hash {
		t.Error("the key does not matter")
	}
	same(t, "id of the task", decode(t, minimal(`"id":"x"`)).ID, "x")
	if len(hash) != 64 {
		t.Errorf("hash %q", hash)
	}
}
