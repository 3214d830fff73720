#!/usr/bin/env bash
# The three stages, or some, as one SLURM job that survives its time limit:
#     sbatch --nodes 1 stages/slurm.sh 1b stage1
#     sbatch --nodes 12 --gpus-per-node 8 --ntasks-per-node 8 --time 24:00:00 stages/slurm.sh 7b stage1 stage2
#     sbatch --nodes 1 --gpus-per-node 8 --ntasks-per-node 8 --time 24:00:00 stages/slurm.sh 7b stage3
# The number of processes must divide a stage's batch. That of stage 3 of 7b and 13b is too small for 96 processes and would
# run on 32 of them: submit it as a separate job.
# RUN is the run folder (runs/PRESET if not set), ARGS further options of the stages: --export ALL,ARGS="--training.optim ..".
# There is one task a GPU, so that the signal before the time limit reaches every process at once. They save a checkpoint and
# end with exit code 143, and the job queues itself again, unless it was cancelled. A job that is preempted or loses a node
# also continues from its newest checkpoint.
# All nodes must share the run folder. On a cluster without internet download the model first: hf download NAME
#SBATCH --job-name speechgpt
#SBATCH --gpus-per-node 1
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 8
#SBATCH --signal TERM@600
#SBATCH --requeue
#SBATCH --open-mode append
set -uo pipefail

preset=${1:?name a preset: sbatch stages/slurm.sh 7b [stage1 stage2 stage3]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
export RUN=${RUN:-runs/$preset} ARGS=${ARGS:-}
[ -d "stages/configs/$preset" ] || { echo "there is no preset stages/configs/$preset"; exit 2; }

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # another port for each job that shares a node
PYTHON=${PYTHON:-.venv/bin/python}
export MASTER_ADDR MASTER_PORT PYTHON TOKENIZERS_PARALLELISM=false
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8} # from SLURM 22.05 on srun does not take it from the job, and would bind a task to one CPU
trap : TERM # the signal is for the processes; this shell waits for them

stages=("$@")
[ $# -gt 0 ] || stages=(stage1 stage2 stage3)
each=${SLURM_NTASKS_PER_NODE:-1}
tasks=$((SLURM_JOB_NUM_NODES * each))
shares=()
for stage in "${stages[@]}"; do # all of them before the first one starts, which may take days
  share=$("$PYTHON" -m stages.train "stages/configs/$preset/$stage.yaml" --run "$RUN" $ARGS --share "$tasks" | tail -n 1) || exit 2
  [ "$share" = "$tasks" ] || echo "$stage runs on $share of the $tasks tasks: its batch does not divide among all"
  shares+=("$share")
done

# srun ends with the highest exit code, and a failed task ends the others by TERM: so a failure must be higher than 143.
task='trap : TERM
RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$1 "$PYTHON" -m stages.train "$0" --run "$RUN" $ARGS
code=$?
[ $code = 0 ] || [ $code = 143 ] || exit 255
exit $code'
for i in "${!stages[@]}"; do
  share=${shares[$i]} code=0
  srun --kill-on-bad-exit=1 --relative=0 --nodes=$(((share + each - 1) / each)) --ntasks="$share" --ntasks-per-node="$each" \
    bash -c "$task" "stages/configs/$preset/${stages[$i]}.yaml" "$share" || code=$?
  if [ "$code" = 143 ]; then
    # scancel sends TERM too, but its jobs are no longer running
    [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ] || exit 143
    echo "stopped before the time limit; queued again"
    exec scontrol requeue "$SLURM_JOB_ID"
  fi
  [ "$code" = 0 ] || exit "$code"
done
