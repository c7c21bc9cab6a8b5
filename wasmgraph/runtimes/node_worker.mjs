// A worker thread of a graph in Node.js.

import { parentPort, workerData } from 'node:worker_threads';
import { serve } from '../web/worker.mjs';

serve(workerData, () => parentPort.postMessage('ready'));
