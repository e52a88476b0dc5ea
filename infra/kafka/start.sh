#!/bin/sh
# Runs a real Kafka broker on this machine, without Docker: Java 17, Maven and
# OpenSSL.
#
#   infra/kafka/start.sh FOLDER [PORT]
#
# FOLDER keeps the jars (54 MB, fetched once), the log and the secrets. The
# broker answers on 127.0.0.1 after about four seconds:
#
#   PORT       plain text (29092 if not given)
#   PORT + 1   the controller
#   PORT + 2   SASL inside TLS: --tls --tls-ca FOLDER/secrets/ca.pem
#              --sasl plain | scram-sha-256 | scram-sha-512 --sasl-user scavenge
#              --sasl-password-file FOLDER/secrets/password
#   PORT + 3   TLS with client certificates: --tls --tls-ca FOLDER/secrets/ca.pem
#              --tls-cert FOLDER/secrets/client.pem --tls-key FOLDER/secrets/client.key
#
# The script becomes the broker: stop it with Ctrl-C or kill.
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

# An authority of this folder's own, what it signs, and a random password.
if [ ! -e "$folder/secrets/.whole" ]; then
  (
    umask 077
    rm -rf "$folder/secrets"
    mkdir "$folder/secrets"
    cd "$folder/secrets"
    openssl rand -hex 16 > password
    printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\n' > names
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=scavenge-authority -keyout ca.key -out ca.pem
    for name in broker client; do
      openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout $name.key -out $name.csr
      openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out $name.crt
    done
    cat broker.key broker.crt > broker.pem
    mv client.crt client.pem
    touch .whole
  ) >"$folder/openssl.log" 2>&1 || { cat "$folder/openssl.log" >&2; exit 1; }
  if [ -e "$folder/log/meta.properties" ]; then
    echo "start.sh: $folder/log knows another password: remove it, or the folder's secrets" >&2
    exit 1
  fi
fi
password=$(cat "$folder/secrets/password")
(
  umask 077
  sed -e "s|@PORT@|$port|g" -e "s|@CONTROLLER@|$((port + 1))|g" -e "s|@SASL@|$((port + 2))|g" -e "s|@MUTUAL@|$((port + 3))|g" \
    -e "s|@DATA@|$folder/log|g" -e "s|@SECRETS@|$folder/secrets|g" -e "s|@PASSWORD@|$password|g" "$here/server.properties" > "$folder/server.properties"
)
if [ ! -e "$folder/log/meta.properties" ]; then
  id=$(java -cp "$folder/libs/*" kafka.tools.StorageTool random-uuid 2>/dev/null | tail -1)
  # its output shows the users' keys
  java -cp "$folder/libs/*" kafka.tools.StorageTool format -t "$id" -c "$folder/server.properties" \
    -S "SCRAM-SHA-256=[name=scavenge,password=$password]" -S "SCRAM-SHA-512=[name=scavenge,password=$password]" >/dev/null
fi
exec java -Xmx1g -cp "$folder/libs/*" kafka.Kafka "$folder/server.properties"
