// Command hello greets, and says which deployment it is.
package main

import (
	"fmt"
	"os"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "unknown"

func main() {
	name := "world"
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	fmt.Println(greeting(name, version))
}

func greeting(name, version string) string {
	return fmt.Sprintf("Hello, %s! This is hello, build %s.", name, version)
}
