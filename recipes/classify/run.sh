#!/usr/bin/env bash
# Sounds named by class and emoji by group, without training on labels: the commands that a user has, then the table.
#
#   recipes/classify/run.sh DATA OUT [--seeds 0,1,2]
#
# DATA holds esc/sounds.tsv, esc/audio/, emoji/emoji.tsv, emoji/images/, weights/yamnet.tflite and
# weights/mobilenet_v2_tf_fp16.npz; OUT is a folder to write.
#
# How zero-shot this is: the captions of the sounds are "label: title", so the *names* of all classes were read in training, with
# other recordings. In the strict form, which table.py does too, no clip and no caption of a class is trained on. Groups of
# emoji are never trained on: pictures are paired with names.
set -euo pipefail
data=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)
shift 2
export YAMNET=$data/weights/yamnet.tflite MOBILENET=$data/weights/mobilenet_v2_tf_fp16.npz
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
mkdir -p "$out"
# "smileys-emotion" is the key of a group; what is read is "smileys and emotion".
awk -F'\t' -v OFS='\t' 'NR == 1 {print $0, "kind"} NR > 1 {kind = $2; gsub("-", " and ", kind); print $0, kind}' \
  "$data/emoji/emoji.tsv" > "$out/emoji.tsv"

fusemix extract "$data/esc/sounds.tsv" --sound "file=$here/../sounds/yamnet.py:encode" --text caption=minilm --pooling text=mean \
  --group source_id -o "$out/sounds"
fusemix extract "$out/emoji.tsv" --root "$data/emoji" --image "image=$here/../flickr8k/mobilenet.py:encode" \
  --text name=minilm --pooling text=mean -o "$out/emoji"

few=(--epochs 40 --set expansion=1) # pairs this few need neither a wide block nor many passes
for what in sounds emoji; do
  fusemix fit "$out/$what" "${few[@]}" -o "$out/$what-model"
  fusemix index "$out/$what-model" "$out/$what" -o "$out/$what-index"
done
# The whole index is opened, because the classes are those of all its items: the test split alone has clips of 20 only.
fusemix classify "$out/sounds-index" --classes label --truth label --where "split = test" -o "$out/sounds-test.csv" \
  --template "{}" --template "the sound of {}" --template "a recording of {}" --confusion "$out/sounds-test.png"
fusemix classify "$out/emoji-index" --classes kind --truth kind --where "split = test" -o "$out/emoji-test.csv" \
  --template "{}" --template "a picture of {}" --template "an emoji of {}" --confusion "$out/emoji-test.png"

python "$here/table.py" "$out/sounds" "$out/emoji" --out "$out" "$@"
