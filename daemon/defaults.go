package daemon

// Effective is the configuration that a server goes by which is given c: where
// c leaves something open it has the default. Its errors are New's.
func (c Config) Effective() (Config, error) { return c.withDefaults() }
