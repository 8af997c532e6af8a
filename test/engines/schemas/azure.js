// Holds a task of Azure Batch against the models of Azure's own client: what they
// do not know is not sent, so that a document with a wrong name does not come back whole.
const fs = require("fs");
const assert = require("assert");
const { BatchServiceMappers } = require("@azure/batch");
const { Serializer } = require("@azure/ms-rest-js");

const task = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const sent = new Serializer(BatchServiceMappers).serialize(BatchServiceMappers.TaskAddParameter, task, "task");
assert.deepStrictEqual(JSON.parse(JSON.stringify(sent)), task);
