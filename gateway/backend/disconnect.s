// Empty: lets the package declare a function without a body, which the linker finds elsewhere.
