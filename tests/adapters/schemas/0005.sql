BEGIN TRANSACTION;
CREATE TABLE activations (
	name TEXT NOT NULL,
	position INTEGER NOT NULL,
	digest TEXT NOT NULL,
	previous INTEGER,
	at DOUBLE NOT NULL,
	CONSTRAINT activations_key PRIMARY KEY (name, position),
	FOREIGN KEY(name) REFERENCES adapters (name) ON DELETE CASCADE
);
INSERT INTO "activations" VALUES('pirate',1,'f11b1ed6ec95391394e47c7da5269beaee97dde331d75df3e4ff3ddb0a0717dd',NULL,1.79540987449267101282e+09);
INSERT INTO "activations" VALUES('pirate',2,'3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3',1,1.79540987450409412389e+09);
INSERT INTO "activations" VALUES('corsair',1,'3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3',NULL,1.79540987451018667223e+09);
INSERT INTO "activations" VALUES('retired',1,'8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f',NULL,1.79540987451710247991e+09);
INSERT INTO "activations" VALUES('acme/parrot',1,'8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f',NULL,1.79540987453877782823e+09);
CREATE TABLE adapters (
	name TEXT NOT NULL,
	generation BIGINT NOT NULL,
	active INTEGER,
	activation INTEGER,
	last_number INTEGER NOT NULL,
	retired BOOLEAN NOT NULL,
	pinned BOOLEAN NOT NULL,
	source TEXT NOT NULL,
	origin TEXT NOT NULL,
	origin_digest TEXT,
	folder_digest TEXT,
	error TEXT,
	error_code TEXT,
	created DOUBLE NOT NULL,
	updated DOUBLE NOT NULL, owner TEXT DEFAULT 'default' NOT NULL, follower TEXT,
	PRIMARY KEY (name)
);
INSERT INTO "adapters" VALUES('pirate',2,2,2,2,0,1,'hub','hf://me/pirate@4f2c','3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3',NULL,NULL,NULL,1.79540987448662376401e+09,1.79540987450434184075e+09,'default',NULL);
INSERT INTO "adapters" VALUES('corsair',1,1,1,1,0,0,'folder','corsair#1','3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3','3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3',NULL,NULL,1.79540987450873565671e+09,1.79540987451048183447e+09,'default','here');
INSERT INTO "adapters" VALUES('retired',2,NULL,NULL,1,1,0,'folder','retired#1','8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f','8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f',NULL,NULL,1.7954098745150413513e+09,1.79540987452150893211e+09,'default',NULL);
INSERT INTO "adapters" VALUES('broken',0,NULL,NULL,0,0,0,'folder','broken#1',NULL,NULL,'half there','incomplete',1.79540987452676630018e+09,1.79540987452717137329e+09,'default',NULL);
INSERT INTO "adapters" VALUES('acme/parrot',1,1,1,1,0,0,'api','upload','8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f',NULL,NULL,NULL,1.79540987453744935991e+09,1.7954098745390789509e+09,'acme',NULL);
CREATE TABLE alias_targets (
	alias TEXT NOT NULL,
	position INTEGER NOT NULL,
	target TEXT NOT NULL,
	weight DOUBLE NOT NULL,
	CONSTRAINT alias_targets_key PRIMARY KEY (alias, position),
	FOREIGN KEY(alias) REFERENCES aliases (name) ON DELETE CASCADE
);
INSERT INTO "alias_targets" VALUES('crew',0,'pirate',9.0);
INSERT INTO "alias_targets" VALUES('crew',1,'corsair',1.0);
INSERT INTO "alias_targets" VALUES('acme/birds',0,'acme/parrot',1.0);
INSERT INTO "alias_targets" VALUES('acme/birds',1,'pirate',1.0);
CREATE TABLE aliases (
	name TEXT NOT NULL,
	sticky TEXT NOT NULL,
	generation BIGINT NOT NULL,
	updated DOUBLE NOT NULL, owner TEXT DEFAULT 'default' NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "aliases" VALUES('crew','user',1,1.79540987453329730031e+09,'default');
INSERT INTO "aliases" VALUES('acme/birds','none',1,1.79540987454869532587e+09,'acme');
CREATE TABLE changes (
	sequence BIGINT NOT NULL,
	name TEXT NOT NULL,
	PRIMARY KEY (sequence)
);
INSERT INTO "changes" VALUES(1,'pirate');
INSERT INTO "changes" VALUES(2,'pirate');
INSERT INTO "changes" VALUES(3,'corsair');
INSERT INTO "changes" VALUES(4,'retired');
INSERT INTO "changes" VALUES(5,'retired');
INSERT INTO "changes" VALUES(6,'broken');
INSERT INTO "changes" VALUES(7,'crew');
INSERT INTO "changes" VALUES(8,'acme/parrot');
INSERT INTO "changes" VALUES(9,'acme/parrot');
INSERT INTO "changes" VALUES(10,'acme/birds');
CREATE TABLE identity (
	id TEXT NOT NULL, blob_store TEXT,
	PRIMARY KEY (id)
);
INSERT INTO "identity" VALUES('bebb42ddaafc4f1b90f18e7d9b416868','s3://bucket/livery');
CREATE TABLE livery_schema (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT livery_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "livery_schema" VALUES('0005');
CREATE TABLE shares (
	name TEXT NOT NULL,
	grantee TEXT NOT NULL,
	since DOUBLE NOT NULL,
	CONSTRAINT shares_key PRIMARY KEY (name, grantee),
	FOREIGN KEY(name) REFERENCES adapters (name) ON DELETE CASCADE
);
INSERT INTO "shares" VALUES('acme/parrot','bob',1.7954098745435469151e+09);
CREATE TABLE versions (
	name TEXT NOT NULL,
	number INTEGER NOT NULL,
	digest TEXT NOT NULL,
	weights TEXT NOT NULL,
	approximate INTEGER NOT NULL,
	peft_type TEXT NOT NULL,
	base_digest TEXT NOT NULL,
	nbytes BIGINT NOT NULL,
	coverage TEXT NOT NULL,
	profile TEXT NOT NULL,
	parents TEXT NOT NULL,
	invocation TEXT NOT NULL,
	created DOUBLE NOT NULL,
	added DOUBLE NOT NULL,
	state TEXT NOT NULL,
	CONSTRAINT versions_key PRIMARY KEY (name, number),
	CONSTRAINT versions_name_digest UNIQUE (name, digest),
	FOREIGN KEY(name) REFERENCES adapters (name) ON DELETE CASCADE
);
INSERT INTO "versions" VALUES('pirate',1,'f11b1ed6ec95391394e47c7da5269beaee97dde331d75df3e4ff3ddb0a0717dd','7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed',0,'LORA','base',12884901888,'{"modules": [{"name": "q_proj", "effect": 0.25}], "base": "base"}','{"temperature": 0.5}','[["e47125968b3b71049fbc4802d1e40a71ea1359decfabacf70b34588037d4ff0c", 0.5]]','[1, 2]',1.5,1.79540987448875284191e+09,'ready');
INSERT INTO "versions" VALUES('pirate',2,'3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3','3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3',0,'LORA','base',12884901888,'{"modules": [{"name": "q_proj", "effect": 0.25}], "base": "base"}','{}','[["e47125968b3b71049fbc4802d1e40a71ea1359decfabacf70b34588037d4ff0c", 0.5]]','[1, 2]',1.5,1.79540987450261259076e+09,'ready');
INSERT INTO "versions" VALUES('corsair',1,'3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3','3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3',0,'LORA','base',12884901888,'{"modules": [{"name": "q_proj", "effect": 0.25}], "base": "base"}','{}','[["e47125968b3b71049fbc4802d1e40a71ea1359decfabacf70b34588037d4ff0c", 0.5]]','[1, 2]',1.5,1.79540987450930333143e+09,'registered');
INSERT INTO "versions" VALUES('acme/parrot',1,'8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f','8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f',0,'LORA','base',12884901888,'{"modules": [{"name": "q_proj", "effect": 0.25}], "base": "base"}','{}','[["e47125968b3b71049fbc4802d1e40a71ea1359decfabacf70b34588037d4ff0c", 0.5]]','[1, 2]',1.5,1.79540987453800225258e+09,'ready');
CREATE INDEX versions_weights ON versions (weights);
CREATE INDEX versions_digest ON versions (digest);
CREATE INDEX adapters_owner ON adapters (owner, name);
CREATE INDEX aliases_owner ON aliases (owner, name);
CREATE INDEX shares_grantee ON shares (grantee, name);
COMMIT;
