#!/usr/bin/env bash
# Asks the same questions before and after training, and shows the answers side by side, on one GPU:
#
#   TUNED=runs/medsft-1234 sbatch slurm/evaluate.sh
#   TUNED=runs/medsft-1234 QUESTIONS="my questions.jsonl" sbatch slurm/evaluate.sh --num_questions 200
#
# Submit it from the top of the repository. TUNED is a run's folder or a model's. Further flags of
# `medsft compare` may follow; the last one counts. From the environment: TUNED, BASE, QUESTIONS, and PYTHON.

#SBATCH --job-name=medsft-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

exec "${PYTHON:-.venv/bin/python}" -m medsft.cli compare \
  --base "${BASE:-models/chatglm-6b}" \
  --tuned "${TUNED:?"is not set: give the run's folder, like TUNED=runs/medsft-1234 sbatch slurm/evaluate.sh"}" \
  --questions "${QUESTIONS:-data/test.jsonl}" \
  --num_questions 100 \
  "$@"
