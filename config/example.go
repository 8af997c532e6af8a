package config

import (
	"fmt"
	"strings"
)

// exampleWidth is where the comments of the example break.
const exampleWidth = 100

// Example is a configuration file in which every setting stands at its default,
// behind a "#": it changes nothing until somebody uncomments a line.
func Example() string {
	var out strings.Builder
	out.WriteString("# Configuration of deckhand. A line without its \"#\" sets what it names; what is shown are the\n" +
		"# defaults. Environment variables (" + prefix + "ROOT for root) and flags of the command line come before this\n" +
		"# file; \"deckhand config\" shows the values in force. See deckhand-config(1).\n")
	for _, k := range keys {
		value := k.fallback
		if value == "" {
			value = `""`
		}
		fmt.Fprintf(&out, "\n%s%s#%s: %s\n", comment(k.doc), comment("Allowed: "+k.kind.allowed+"."), k.name, value)
	}
	return out.String()
}

// comment is a text in lines that begin with "# ".
func comment(text string) string {
	var out strings.Builder
	line := "#"
	for _, word := range strings.Fields(text) {
		if line != "#" && len(line)+1+len(word) > exampleWidth {
			out.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return out.String() + line + "\n"
}
