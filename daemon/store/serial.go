package store

import (
	"fmt"
	"strconv"
	"time"
)

// serialSetting is the setting that has the last serial.
const serialSetting = "token_serial"

// NextSerial draws the serial of a token: greater than all before it on any
// server of the database, whatever the clocks do, and near the time in
// microseconds, so that it also grows over a restore of an older snapshot.
func (tx *Tx) NextSerial(now time.Time) (int64, error) {
	if err := tx.lockRules(); err != nil { // between the reading and the writing nobody else draws
		return 0, err
	}
	text, err := tx.Setting(serialSetting)
	if err != nil {
		return 0, err
	}
	var last int64
	if text != "" {
		if last, err = strconv.ParseInt(text, 10, 64); err != nil {
			return 0, fmt.Errorf("draw serial: the last one is not a number: %w", err)
		}
	}
	next := max(last+1, now.UnixMicro())
	return next, tx.PutSetting(serialSetting, strconv.FormatInt(next, 10))
}
