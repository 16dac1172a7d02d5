//go:build !race

package history

// testRate is how many events per second tests record.
const testRate = 10_000
