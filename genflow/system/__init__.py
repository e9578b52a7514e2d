"""What genflow needs of the operating system and the network; the standard library only."""
