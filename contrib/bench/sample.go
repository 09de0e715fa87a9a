package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// samples are durations of the same thing.
type samples []time.Duration

// quantile is the value that q of the samples do not exceed.
func (s samples) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (s samples) p50() time.Duration { return s.quantile(0.50) }
func (s samples) p99() time.Duration { return s.quantile(0.99) }

// repeat does one thing after another for a while, but at least thrice.
func repeat(ctx context.Context, span time.Duration, do func() error) (samples, error) {
	var s samples
	for end := time.Now().Add(span); len(s) < 3 || time.Now().Before(end); {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		s = append(s, time.Since(began))
	}
	return s, nil
}

// rateOf is how many times in a second each of several workers together do
// their thing. What is begun within span counts with the time it takes.
func rateOf(ctx context.Context, span time.Duration, workers []func() error) (float64, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, len(workers)), make([]error, len(workers))
	began := time.Now()
	for i, do := range workers {
		wg.Go(func() {
			var s samples
			s, errs[i] = repeat(ctx, span, do)
			counts[i] = len(s)
		})
	}
	wg.Wait()
	took := time.Since(began)
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / took.Seconds(), errors.Join(errs...)
}

// median of a few figures.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(v))
	return sorted[len(sorted)/2]
}

// turns lets floor and measurement take turns, and returns the median of each.
func turns(rounds int, floor, measure func() (float64, error)) (measured, least float64, err error) {
	var f, m []float64
	for range rounds {
		v, err := floor()
		if err != nil {
			return 0, 0, err
		}
		f = append(f, v)
		if v, err = measure(); err != nil {
			return 0, 0, err
		}
		m = append(m, v)
	}
	return median(m), median(f), nil
}
