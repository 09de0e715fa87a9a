package operation

// nearest is the candidate with the fewest edits from word, "" where none is
// near: more than half of it would have to change.
func nearest(word string, candidates []string) string {
	best, limit := "", max(2, len(word)/2)+1
	for _, c := range candidates {
		if d := edits(word, c); d < limit {
			best, limit = c, d
		}
	}
	return best
}

// edits counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func edits(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
