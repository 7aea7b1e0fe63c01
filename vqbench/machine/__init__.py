"""What vqbench needs of this computer: whole files, downloads, locks, cores, processes, GPUs, signals, imports,
provenance. May import `errors`, `wording` and `config`.
"""
