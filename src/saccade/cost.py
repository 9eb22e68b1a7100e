"""What a network costs, by arithmetic on its settings: parameters, floating-point operations. No torch here."""
