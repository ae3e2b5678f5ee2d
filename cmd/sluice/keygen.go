package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/key"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:      "keygen",
		Usage:     "write a new key for the nodes to share, readable by its owner only",
		ArgsUsage: "FILE",
		Description: "Every node needs the same file: copy it (`scp -p`), and name it in the configuration as " +
			"sync: {key_file: FILE}. A file that is there already is left alone.",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return &usageError{"keygen ", errors.New("want one FILE")}
			}
			path := c.Args().First()
			if err := key.Write(path, key.New()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.App.Writer, "wrote %s: copy it to the other nodes\n", path)
			return err
		},
	}
}
