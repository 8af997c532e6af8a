#!/bin/bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:INT@60
roots=4 # as in the epilog
root=/var/lib/deckhand/$((SLURM_JOB_ID % roots))
exec /usr/bin/deckhand run "$1" --result "${1%.json}.result.json" --root "$root" --lock-wait 1h
