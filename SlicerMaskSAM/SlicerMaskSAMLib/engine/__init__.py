"""The engine process, background commands, and the installation of packages."""
