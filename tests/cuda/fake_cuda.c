/* A CUDA without a GPU, for the CUDA provider of onnxruntime-gpu (CUDA 13 builds, Linux x86-64).

   One library that stands for libcuda.so.1 and the CUDA libraries that the provider is linked with.
   Device memory is host memory and copies to the device are made, but kernels and products do
   nothing, and what is copied to the host is zeros. So it can be seen what the provider asks of a
   device, and what the server does when the device refuses; not what a kernel computes.

   Functions without parameters here are called with some, which the calling convention allows. */

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NO_MEMORY = 2, OLD_DRIVER = 35, NO_DEVICE = 100, BAD_DEVICE = 101, NO_CODE = 209 };
enum { TO_DEVICE = 1, TO_HOST = 2 }; /* kinds of copies */
enum { TF32_MODE = 3, TF32_PRODUCT = 77 };
enum { MOST_GPUS = 8, MANY = 1 << 16 };

/* What the device is like. From the environment, and by name through ctypes. */
long fake_gpus = 1;
long fake_capability = 90;      /* of the first GPU: 10 * major + minor */
long fake_other_capability = 90; /* of the others */
long fake_driver = 13000;       /* 1000 * major + 10 * minor of the CUDA that the driver has */
long fake_memory = 1L << 40;    /* bytes of all GPUs together */
long fake_error = 0;            /* what every call to the device returns from now on */

/* What was asked of it. */
long fake_launches[MOST_GPUS];  /* kernels and products, by GPU */
long fake_tf32;                 /* products and modes in TF32 */
long fake_used;                 /* bytes of device memory */
long fake_allocations;
long fake_copies_in;            /* from the host */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int device, last_error;

__attribute__((constructor)) static void start(void) {
    struct { const char *name; long *value; } all[] = {
        {"FAKE_GPUS", &fake_gpus},
        {"FAKE_CAPABILITY", &fake_capability},
        {"FAKE_OTHER_CAPABILITY", &fake_other_capability},
        {"FAKE_DRIVER", &fake_driver},
        {"FAKE_MEMORY", &fake_memory},
        {"FAKE_ERROR", &fake_error},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const char *given = getenv(all[i].name);
        if (given) *all[i].value = atol(given);
    }
}

static long capability(int gpu) { return gpu ? fake_other_capability : fake_capability; }

/* Architectures that the provider's library holds code for: see app/engine/devices.py. */
static int has_code(long of) {
    return (of >= 75 && of < 100) || of / 10 == 12;
}

static int state(void) { return fake_driver < 13000 ? OLD_DRIVER : (int)fake_error; }

static void count(long *counter, long by) {
    pthread_mutex_lock(&lock);
    *counter += by;
    pthread_mutex_unlock(&lock);
}

static int launched(int with_code) {
    int error = state() ? state() : with_code ? 0 : NO_CODE;
    if (error)
        last_error = error;
    else
        count(&fake_launches[device], 1);
    return error;
}

/* cuBLAS brings code of its own. */
static int multiplied(void) { return launched(1) ? 13 : 0; } /* CUBLAS_STATUS_EXECUTION_FAILED */

static int made(void **handle) {
    *handle = malloc(64);
    return 0;
}

#define WORKS(name) int name(void) { return 0; }
#define ASKS(name) int name(void) { return state(); }
#define LAUNCHES(name) int name(void) { return launched(has_code(capability(device))); }
#define MAKES(name) int name(void **handle) { return made(handle); }

/* The driver, as app/engine/devices.py asks it. */

WORKS(cuTensorMapEncodeTiled)
int cuInit(void) { return fake_gpus ? 0 : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = (int)fake_driver; return 0; }
int cuDeviceGetCount(int *gpus) { *gpus = (int)fake_gpus; return 0; }
int cuDeviceGet(int *found, int gpu) { *found = gpu; return gpu < fake_gpus ? 0 : BAD_DEVICE; }
int cuDeviceGetName(char *name, int size, int gpu) {
    strncpy(name, gpu ? "Other GPU" : "Fake GPU", (size_t)size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int gpu) {
    *value = attribute == 75 ? (int)(capability(gpu) / 10) : (int)(capability(gpu) % 10);
    return 0;
}

/* The runtime: code and launches. */

typedef struct { unsigned x, y, z; } Size;
static __thread struct { Size grid, block; size_t shared; void *stream; } pending;

void **__cudaRegisterFatBinary(void) { static void *code; return &code; }
WORKS(__cudaRegisterFatBinaryEnd)
WORKS(__cudaRegisterFunction)
WORKS(__cudaRegisterVar)
WORKS(__cudaUnregisterFatBinary)
unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void *stream) {
    pending.grid = grid;
    pending.block = block;
    pending.shared = shared;
    pending.stream = stream;
    return 0;
}
int __cudaPopCallConfiguration(Size *grid, Size *block, size_t *shared, void **stream) {
    *grid = pending.grid;
    *block = pending.block;
    *shared = pending.shared;
    *stream = pending.stream;
    return 0;
}
int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return 0; }
LAUNCHES(__cudaLaunchKernel)
LAUNCHES(cudaLaunchKernel)
LAUNCHES(cudaLaunchKernelExC)
LAUNCHES(cudaLaunchCooperativeKernel)
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    (void)stream;
    function(data);
    return state();
}
int cudaFuncGetAttributes(char *attributes, const void *function) {
    (void)function;
    memset(attributes, 0, 144);
    ((int *)(attributes + 24))[0] = 1024; /* threads of a block */
    /* versions of a kernel's code */
    ((int *)(attributes + 24))[2] = ((int *)(attributes + 24))[3] = (int)capability(device);
    return state();
}
WORKS(cudaFuncSetAttribute)
WORKS(cudaKernelSetAttributeForDevice)
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 2; return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function) {
    (void)name;
    *function = NULL;
    return 1;
}
MAKES(cudaLibraryLoadData)
MAKES(cudaLibraryGetKernel)
WORKS(cudaLibraryUnload)

/* Devices. */

int cudaGetDeviceCount(int *gpus) { *gpus = (int)fake_gpus; return state(); }
int cudaGetDevice(int *found) { *found = device; return state(); }
int cudaSetDevice(int gpu) {
    if (gpu < 0 || gpu >= fake_gpus) return BAD_DEVICE;
    device = gpu;
    return state();
}
int cudaDriverGetVersion(int *version) { *version = (int)fake_driver; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
static int limit(int attribute, int gpu) {
    switch (attribute) {
    case 1: return 1024;        /* threads of a block */
    case 5: return 2147483647;  /* blocks of a grid */
    case 6: return 65535;
    case 8: return 49152;       /* shared bytes of a block */
    case 10: return 32;         /* threads of a warp */
    case 16: return 132;        /* multiprocessors */
    case 39: return 2048;       /* threads of one */
    case 75: return (int)(capability(gpu) / 10);
    case 76: return (int)(capability(gpu) % 10);
    case 97: return 232448;     /* shared bytes of a block that asks for them */
    default: return 1;
    }
}
int cudaDeviceGetAttribute(int *value, int attribute, int gpu) {
    *value = limit(attribute, gpu);
    return state();
}
/* Offsets are those of CUDA 13's cudaDeviceProp. */
int cudaGetDeviceProperties(char *found, int gpu) {
    memset(found, 0, 1008);
    strcpy(found, "Fake GPU");
    *(size_t *)(found + 288) = 64UL << 30;
    *(size_t *)(found + 296) = 49152;
    *(int *)(found + 304) = 65536; /* registers of a block */
    *(int *)(found + 308) = 32;
    *(int *)(found + 320) = 1024;
    for (int i = 0; i < 3; i++) {
        ((int *)(found + 324))[i] = i < 2 ? 1024 : 64;
        ((int *)(found + 336))[i] = i < 1 ? 2147483647 : 65535;
    }
    *(int *)(found + 360) = (int)(capability(gpu) / 10);
    *(int *)(found + 364) = (int)(capability(gpu) % 10);
    *(int *)(found + 384) = 132;
    *(int *)(found + 604) = 2048;
    *(size_t *)(found + 624) = 233472;
    *(int *)(found + 632) = 65536;
    *(size_t *)(found + 672) = 232448;
    *(int *)(found + 688) = 32;
    return state();
}

/* Memory. */

static struct { void *at; size_t bytes; } blocks[MANY];

static int allocated(void **at, size_t bytes) {
    *at = NULL;
    if (state()) return state();
    pthread_mutex_lock(&lock);
    int room = fake_used + (long)bytes <= fake_memory;
    if (room && !posix_memalign(at, 512, bytes ? bytes : 1)) {
        size_t n = 0;
        while (blocks[n].at) n++;
        blocks[n].at = *at;
        blocks[n].bytes = bytes;
        fake_used += (long)bytes;
        fake_allocations++;
        memset(*at, 0, bytes);
    }
    pthread_mutex_unlock(&lock);
    return *at ? 0 : NO_MEMORY;
}
static int freed(void *at) {
    pthread_mutex_lock(&lock);
    for (size_t n = 0; at && n < MANY; n++)
        if (blocks[n].at == at) {
            fake_used -= (long)blocks[n].bytes;
            blocks[n].at = NULL;
            free(at);
            break;
        }
    pthread_mutex_unlock(&lock);
    return state();
}
static int copied(void *to, const void *from, size_t bytes, int kind) {
    if (state()) return state();
    if (kind == TO_DEVICE) count(&fake_copies_in, 1);
    if (kind != TO_HOST)
        memmove(to, from, bytes);
    else if (bytes == 4)
        *(int *)to = 1; /* how many entries NonZero has found */
    else
        memset(to, 0, bytes);
    return 0;
}
int cudaMalloc(void **at, size_t bytes) { return allocated(at, bytes); }
int cudaMallocFromPoolAsync(void **at, size_t bytes) { return allocated(at, bytes); }
int cudaFree(void *at) { return freed(at); }
int cudaFreeAsync(void *at) { return freed(at); }
int cudaHostAlloc(void **at, size_t bytes) { *at = calloc(1, bytes ? bytes : 1); return state(); }
int cudaMallocHost(void **at, size_t bytes) { return cudaHostAlloc(at, bytes); }
int cudaFreeHost(void *at) { free(at); return state(); }
int cudaMemGetInfo(size_t *left, size_t *all) {
    *all = (size_t)fake_memory;
    *left = (size_t)(fake_memory - fake_used);
    return state();
}
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    return copied(to, from, bytes, kind);
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind) {
    return copied(to, from, bytes, kind);
}
int cudaMemcpy2DAsync(
    char *to, size_t to_step, const char *from, size_t from_step, size_t bytes, size_t rows, int kind
) {
    for (size_t n = 0; n < rows; n++) {
        int error = copied(to + n * to_step, from + n * from_step, bytes, kind);
        if (error) return error;
    }
    return state();
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes) {
    (void)symbol;
    memset(to, 0, bytes);
    return state();
}
int cudaMemset(void *at, int value, size_t bytes) { memset(at, value, bytes); return state(); }
int cudaMemsetAsync(void *at, int value, size_t bytes) { memset(at, value, bytes); return state(); }
MAKES(cudaMemPoolCreate)
WORKS(cudaMemPoolDestroy)
WORKS(cudaMemPoolSetAttribute)
WORKS(cudaMemPoolTrimTo)
int cudaMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) {
    (void)pool, (void)attribute;
    *value = 0;
    return 0;
}
int cudaPointerGetAttributes(char *found, const void *at) {
    memset(found, 0, 88);
    *(int *)found = 2; /* device memory */
    *(const void **)(found + 8) = at;
    return state();
}

/* Streams, events, graphs, errors. */

MAKES(cudaStreamCreate)
MAKES(cudaStreamCreateWithFlags)
WORKS(cudaStreamDestroy)
ASKS(cudaStreamSynchronize)
ASKS(cudaStreamWaitEvent)
ASKS(cudaDeviceSynchronize)
MAKES(cudaEventCreate)
MAKES(cudaEventCreateWithFlags)
WORKS(cudaEventDestroy)
ASKS(cudaEventRecord)
ASKS(cudaEventRecordWithFlags)
ASKS(cudaEventSynchronize)
int cudaEventElapsedTime(float *milliseconds) { *milliseconds = 1; return state(); }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return state(); }
WORKS(cudaStreamBeginCapture)
int cudaStreamEndCapture(void *stream, void **graph) { (void)stream; return made(graph); }
MAKES(cudaGraphInstantiate)
WORKS(cudaGraphLaunch)
WORKS(cudaGraphDestroy)
WORKS(cudaGraphExecDestroy)
int cudaPeekAtLastError(void) { return state() ? state() : last_error; }
int cudaGetLastError(void) {
    int found = cudaPeekAtLastError();
    last_error = 0;
    return found;
}
const char *cudaGetErrorName(int error) {
    return error == NO_MEMORY ? "cudaErrorMemoryAllocation" : "cudaError";
}
const char *cudaGetErrorString(int error) {
    switch (error) {
    case NO_MEMORY: return "out of memory";
    case OLD_DRIVER: return "CUDA driver version is insufficient for CUDA runtime version";
    case NO_CODE: return "no kernel image is available for execution on the device";
    case 46: return "CUDA-capable device(s) is/are busy or unavailable";
    case 700: return "an illegal memory access was encountered";
    default: return "an error";
    }
}

/* Products. */

MAKES(cublasCreate_v2)
WORKS(cublasDestroy_v2)
WORKS(cublasSetStream_v2)
int cublasGetMathMode(void *handle, int *mode) { (void)handle; *mode = 0; return 0; }
int cublasSetMathMode(void *handle, int mode) {
    (void)handle;
    if (mode == TF32_MODE) count(&fake_tf32, 1);
    return 0;
}
int cublasGemmEx(
    void *handle, int trans_a, int trans_b, int m, int n, int k, const void *alpha, const void *a,
    int a_type, int a_step, const void *b, int b_type, int b_step, const void *beta, void *c,
    int c_type, int c_step, int product
) {
    (void)handle, (void)trans_a, (void)trans_b, (void)m, (void)n, (void)k, (void)alpha, (void)a;
    (void)a_type, (void)a_step, (void)b, (void)b_type, (void)b_step, (void)beta, (void)c;
    (void)c_type, (void)c_step;
    if (product == TF32_PRODUCT) count(&fake_tf32, 1);
    return multiplied();
}
#define MULTIPLIES(name) int name(void) { return multiplied(); }
MULTIPLIES(cublasSgemm_v2)
MULTIPLIES(cublasSgemmBatched)
MULTIPLIES(cublasSgemmStridedBatched)
MULTIPLIES(cublasDgemm_v2)
MULTIPLIES(cublasDgemmBatched)
MULTIPLIES(cublasDgemmStridedBatched)
MULTIPLIES(cublasGemmBatchedEx)
MULTIPLIES(cublasGemmStridedBatchedEx)
MULTIPLIES(cublasSgeam)
MULTIPLIES(cublasDgeam)
MULTIPLIES(cublasSgetrfBatched)
MULTIPLIES(cublasDgetrfBatched)
MULTIPLIES(cublasSgetriBatched)
MULTIPLIES(cublasDgetriBatched)
MULTIPLIES(cublasScopy_v2)
MULTIPLIES(cublasSscal_v2)
MULTIPLIES(cublasLtMatmul)
MULTIPLIES(cublasLtMatrixTransform)
const char *cublasGetStatusName(void) { return "CUBLAS_STATUS_EXECUTION_FAILED"; }
const char *cublasGetStatusString(void) { return "the product failed"; }
MAKES(cublasLtCreate)
WORKS(cublasLtDestroy)
MAKES(cublasLtMatmulDescCreate)
MAKES(cublasLtMatmulPreferenceCreate)
MAKES(cublasLtMatrixLayoutCreate)
MAKES(cublasLtMatrixTransformDescCreate)
int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *product, void *a, void *b, void *c, void *d, void *wanted, int most,
    void *found, int *count_found
) {
    (void)handle, (void)product, (void)a, (void)b, (void)c, (void)d, (void)wanted, (void)most;
    (void)found;
    *count_found = 1;
    return 0;
}
WORKS(cublasLtMatmulAlgoConfigSetAttribute)
WORKS(cublasLtMatmulAlgoInit)
WORKS(cublasLtMatmulDescDestroy)
WORKS(cublasLtMatmulDescSetAttribute)
WORKS(cublasLtMatmulPreferenceDestroy)
WORKS(cublasLtMatmulPreferenceSetAttribute)
WORKS(cublasLtMatrixLayoutDestroy)
WORKS(cublasLtMatrixLayoutSetAttribute)
WORKS(cublasLtMatrixTransformDescDestroy)
