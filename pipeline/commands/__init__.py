"""The commands of `drope` by what they are for. Heavy imports happen inside them, so that --help answers at once."""
