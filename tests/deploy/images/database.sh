set -eu
programs=$(echo /usr/lib/postgresql/*/bin)
ln -sf "$programs/pg_isready" /usr/local/bin/pg_isready
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  install --directory --owner=postgres --mode=700 "$PGDATA"
  printf %s "$POSTGRES_PASSWORD" > /tmp/password && chown postgres /tmp/password
  setpriv --reuid=postgres --regid=postgres --clear-groups "$programs/initdb" --pgdata="$PGDATA" \
    --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 > /dev/null
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE \"$POSTGRES_USER\"" |
    setpriv --reuid=postgres --regid=postgres --clear-groups "$programs/postgres" --single -D "$PGDATA" postgres > /dev/null
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups "$programs/postgres" -D "$PGDATA" \
  -c listen_addresses='*' -c unix_socket_directories=/tmp
