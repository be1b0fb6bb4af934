// Checks custom resources, given as a JSON list on standard input, against the published schemas.
import { readFileSync } from 'node:fs';
import { ScaledObject } from '@kubernetes-models/keda/keda.sh/v1alpha1';
import { ServiceMonitor } from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';

const kinds = { ScaledObject, ServiceMonitor };
const documents = JSON.parse(readFileSync(0, 'utf8'));
for (const document of documents) {
  new kinds[document.kind](document).validate();
}
console.log(documents.length);
