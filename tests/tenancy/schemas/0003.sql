BEGIN TRANSACTION;
CREATE TABLE limit_levels (
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	requests DOUBLE NOT NULL, 
	tokens DOUBLE NOT NULL, 
	at DOUBLE NOT NULL, 
	CONSTRAINT limit_levels_key PRIMARY KEY (kind, name)
);
CREATE TABLE livery_tenants_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT livery_tenants_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "livery_tenants_schema" VALUES('0003');
CREATE TABLE tenancy (
	id INTEGER NOT NULL, 
	changes BIGINT NOT NULL, 
	keyed BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "tenancy" VALUES(1,7,1);
CREATE TABLE tenant_keys (
	id TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	role TEXT NOT NULL, 
	allow TEXT NOT NULL, 
	limits TEXT NOT NULL, 
	label TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	expires DOUBLE, 
	revoked DOUBLE, 
	PRIMARY KEY (id), 
	CONSTRAINT tenant_keys_digest UNIQUE (digest), 
	FOREIGN KEY(tenant) REFERENCES tenants (name) ON DELETE CASCADE
);
INSERT INTO "tenant_keys" VALUES('fcv7i2os','7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed','acme','owner','["own", "sql-*"]','{"n":2}','CI',1.79531915013608264928e+09,NULL,1.7953191501575436592e+09);
INSERT INTO "tenant_keys" VALUES('f3nyyqjq','3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3','zeta','user','["own", "shared", "public", "base"]','{}','',1.79531915016008067126e+09,4000000000.0,NULL);
CREATE TABLE tenants (
	name TEXT NOT NULL, 
	weight DOUBLE NOT NULL, 
	limits TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	disabled BOOLEAN NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "tenants" VALUES('default',1.0,'{}',1.79531915007956242563e+09,0);
INSERT INTO "tenants" VALUES('acme',2.0,'{"n":4}',1.79531915012827754016e+09,1);
INSERT INTO "tenants" VALUES('zeta',1.0,'{}',1.79531915016008067126e+09,0);
CREATE TABLE usage (
	hour BIGINT NOT NULL, 
	tenant TEXT NOT NULL, 
	key_id TEXT NOT NULL, 
	adapter TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	requests BIGINT NOT NULL, 
	prompt_tokens BIGINT NOT NULL, 
	cached_tokens BIGINT NOT NULL, 
	completion_tokens BIGINT NOT NULL, 
	CONSTRAINT usage_key PRIMARY KEY (hour, tenant, key_id, adapter, digest)
);
INSERT INTO "usage" VALUES(480000,'acme','key1key1','acme/pirate','abababababababababababababababababababababababababababababababab',3,1099511627776,8589934592,70);
INSERT INTO "usage" VALUES(480001,'default','','base','fafafafafafafafafafafafafafafafafafafafafafafafafafafafafafafafa',1,5,0,2);
CREATE TABLE usage_flushes (
	server TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (server)
);
INSERT INTO "usage_flushes" VALUES('server1',7,1.79531915019077515597e+09);
CREATE INDEX tenant_keys_tenant ON tenant_keys (tenant);
COMMIT;
