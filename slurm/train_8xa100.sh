#!/usr/bin/env bash
# Fine-tunes ChatGLM-6B on one node with 8 A100-80GB:
#
#   sbatch slurm/train_8xa100.sh
#   MODEL=/models/chatglm-6b TRAIN_FILE="my pairs.jsonl" sbatch slurm/train_8xa100.sh --num_train_epochs 5
#
# Submit it from the top of the repository. Further flags of medsft/train.py may follow, --config with a file of
# settings among them; of a flag given twice the last one counts.
# From the environment: MODEL, TRAIN_FILE, OUTPUT_DIR, DS_CONFIG, NUM_GPUS, PYTHON, and MEDSFT_LAUNCH_FLAGS for
# more flags of `python -m launcher run`, such as "--max-requeues 5" or what `medsft plan` says the run needs:
# "--needs-memory 101 --needs-disk 219 --needs-gpu-memory 20" (GiB) are then checked before it starts.
#
# Ten minutes before the time limit, and when the job is preempted, the run saves a checkpoint, ends with exit
# code 75 and puts the job back into the queue, up to 20 times; the requeued job goes on in the same folder.
# After scancel it does not. A new job goes on when it is given the folder:
#
#   OUTPUT_DIR=runs/medsft-1234 sbatch slurm/train_8xa100.sh
#
# Checkpoints of ChatGLM-6B are 74 GB each; three of them must fit on the disk, and one in the node's memory.
# `touch runs/medsft-1234/STOP` ends the run early, with a checkpoint; scancel leaves it no time for one.

#SBATCH --job-name=medsft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
read -ra launch_flags <<<"${MEDSFT_LAUNCH_FLAGS:-}"

# A flag overrules a file of settings, so with --config nothing is given but what the environment names.
# 16 examples a step, unless a flag says otherwise, are Med-ChatGLM's.
batch=()
if [[ " $* " != *" --config"[=\ ]* ]]; then
  : "${DS_CONFIG:=ds_configs/zero3.json}" "${MODEL:=models/chatglm-6b}" "${TRAIN_FILE:=data/train.jsonl}"
  : "${OUTPUT_DIR:=runs/${SLURM_JOB_NAME:-medsft}-${SLURM_JOB_ID:-local}}"
  if [[ ! " $* " =~ \ --(global_batch_size|per_device_train_batch_size|gradient_accumulation_steps)[=\ ] ]]; then
    batch=(--global_batch_size 16)
  fi
fi

# exec: signals for the job reach the launcher, which passes them on to every rank.
exec "${PYTHON:-.venv/bin/python}" -m launcher run --num-gpus "${NUM_GPUS:-8}" \
  --max-requeues 20 --max-restarts 3 ${launch_flags[@]+"${launch_flags[@]}"} medsft/train.py \
  ${DS_CONFIG:+--deepspeed "$DS_CONFIG"} \
  ${MODEL:+--model_name_or_path "$MODEL"} \
  ${TRAIN_FILE:+--train_file "$TRAIN_FILE"} \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  ${batch[@]+"${batch[@]}"} \
  "$@"
