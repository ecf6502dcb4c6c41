"""Surgery measured beside copying the same bytes and a converter that loads everything. See benchmarks/README.md."""
