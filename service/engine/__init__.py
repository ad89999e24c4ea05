"""How jobs run: cut into blocks, spread over workers, on one device."""
