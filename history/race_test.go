//go:build race

package history

// testRate is how many events per second tests record: the race detector
// makes SQLite more than ten times slower.
const testRate = 1000
