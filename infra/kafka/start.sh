#!/bin/sh
# Runs a real Kafka broker on this machine, without Docker: Java 17 and Maven.
#
#   infra/kafka/start.sh FOLDER [PORT]
#
# FOLDER keeps the jars (54 MB, fetched once) and the log; PORT is 29092 if not
# given, and the next one up serves the controller. The script becomes the
# broker: stop it with Ctrl-C or kill. It answers on 127.0.0.1:PORT after about
# four seconds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: start.sh FOLDER [PORT]}
port=${2:-29092}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if [ ! -e "$folder/libs/.whole" ]; then
  mvn -q -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$folder/libs" 1>&2
  touch "$folder/libs/.whole"
fi
sed -e "s|@PORT@|$port|g" -e "s|@CONTROLLER@|$((port + 1))|g" -e "s|@DATA@|$folder/log|g" "$here/server.properties" > "$folder/server.properties"
if [ ! -e "$folder/log/meta.properties" ]; then
  id=$(java -cp "$folder/libs/*" kafka.tools.StorageTool random-uuid 2>/dev/null | tail -1)
  java -cp "$folder/libs/*" kafka.tools.StorageTool format -t "$id" -c "$folder/server.properties" 1>&2
fi
exec java -Xmx1g -cp "$folder/libs/*" kafka.Kafka "$folder/server.properties"
