package main

import "context"

func leaders(ctx context.Context, rounds int) error { return nil }
