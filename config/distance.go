package config

import "strings"

// didYouMean names the candidate nearest to name, if one is near.
func didYouMean(name string, candidates []string) string {
	best, least := "", max(len(name)/4, 2)+1
	for _, c := range candidates {
		if strings.HasSuffix(c, "."+name) { // the section was forgotten
			return "; did you mean " + c + "?"
		}
		if d := distance(strings.ToLower(name), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	if best == "" {
		return "; \"deckhand config --example\" lists them all"
	}
	return "; did you mean " + best + "?"
}

// distance is Levenshtein's: how many letters to add, drop or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
