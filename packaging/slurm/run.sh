#!/bin/bash
# Analyse a QuPath project on a Slurm cluster: plan here, an array of jobs that infer, one that commits.
#
#   packaging/slurm/run.sh PROJECT RUN_DIR [option of qpnuclei plan ...]
#
#   JOBS=20  into how many jobs the work is divided
#   INFER_OPTIONS="--gres=gpu:1 --cpus-per-task=8 --mem=32G --time=12:00:00"  for each of them
#   COMMIT_OPTIONS="--cpus-per-task=4 --mem=16G --time=2:00:00"  for the job that writes
#
# All machines see the slides and RUN_DIR. The same command goes on with what a run has not finished.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,10s/^# \?//p' "$0"; exit 2; }
project=$1 run_dir=$2
shift 2
jobs=${JOBS:-20}
here=$(cd "$(dirname "$0")" && pwd)
read -ra infer_options <<<"${INFER_OPTIONS:---gres=gpu:1 --cpus-per-task=8 --mem=32G --time=12:00:00}"
read -ra commit_options <<<"${COMMIT_OPTIONS:---cpus-per-task=4 --mem=16G --time=2:00:00}"

# If some images cannot be planned, plan fails but prints the folder: the others are done.
planned=$(qpnuclei plan "$project" --run-dir "$run_dir" "$@") || { code=$?; [ -n "$planned" ] || exit "$code"; }
echo "$planned"
array=$(sbatch --parsable --job-name=infer --array="1-$jobs" --requeue --signal=B:TERM@120 \
  --open-mode=append --output="$run_dir/infer-%a.log" "${infer_options[@]}" \
  "$here/infer.sbatch" "$run_dir" "$jobs")
# What failed is reported by commit: so it runs in any case.
sbatch --parsable --job-name=commit --dependency="afterany:${array%%;*}" \
  --output="$run_dir/commit.log" "${commit_options[@]}" \
  "$here/commit.sbatch" "$run_dir" >/dev/null
echo "array job ${array%%;*}; the logs are in $run_dir"
